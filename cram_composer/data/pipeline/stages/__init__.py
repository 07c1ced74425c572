"""What a data build does to documents, as pure functions of text: each stage a file, without knowing of the others."""
