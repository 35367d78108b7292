"""The ground floor: methods that know neither networks nor training."""
