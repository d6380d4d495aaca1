"""How easy a text is to read: a plugin for Modelmill."""
