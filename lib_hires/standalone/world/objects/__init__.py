"""How each class of object is drawn."""
