"""What a transcoder is: its arrays, how it selects features, the sparse decode, and the files it lives in."""
