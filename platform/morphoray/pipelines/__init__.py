"""The only package that knows Ray Data and Ray Train."""
