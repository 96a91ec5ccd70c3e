"""Callbacks that the extension registers while it is loaded."""

before_ui, ui_settings, app_started = [], [], []
on_before_ui, on_ui_settings = before_ui.append, ui_settings.append
on_app_started = app_started.append

cfg_denoiser = []  # called with the CFG denoiser before each of its evaluations
