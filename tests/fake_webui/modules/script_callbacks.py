"""Callbacks that the extension registers while it is loaded."""

before_ui, ui_settings = [], []
on_before_ui, on_ui_settings = before_ui.append, ui_settings.append
