"""The bundled benchmark."""
