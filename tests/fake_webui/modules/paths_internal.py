"""Where the host keeps the user's files; tests point it to a folder of their own."""

data_path = "not set"
