"""Where the host keeps the user's files; tests point it to folders of their own."""

data_path = "not set"
models_path = "not set"
