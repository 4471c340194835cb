from metrics.ptb import ptb_tokenize
