"""Generated data: small training sets, haystacks, long documents, tokenizers."""
