namespace conclave {}
