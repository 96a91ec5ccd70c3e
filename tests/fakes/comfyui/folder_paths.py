"""Where the host's files are."""

models_dir = "models"
folder_names_and_paths = {}


def add_model_folder_path(name, path, is_default=False):
    folder_names_and_paths.setdefault(name, ([], set()))[0].append(path)


def get_folder_paths(name):
    return list(folder_names_and_paths[name][0])
