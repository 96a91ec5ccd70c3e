"""Run by the WebUI when the extension is installed: nothing is needed that it does not have."""
