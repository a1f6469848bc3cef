"""What a data set costs and what is wrong with it, without decoding any media."""
