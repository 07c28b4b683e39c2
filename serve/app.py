"""The Ray Serve application as an import path: `serve run serve.app:build bundles='[URI]'`, and KubeRay.

Its code lies in morphoray.pipelines.serving, for the sake of installations without this folder.
"""

from ray.serve import Application

from morphoray.pipelines import serving


def build(args: serving.ServingArgs) -> Application:
    """The application that serves `bundles`, a list of NAME=URI or URI; its other arguments are optional."""
    return serving.build(args)
