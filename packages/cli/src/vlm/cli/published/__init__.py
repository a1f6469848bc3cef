"""Lines of the published READMEs, translated to commands of ours."""
