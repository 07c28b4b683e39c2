"""The real S3 server of infra/local_s3.py, for tests; `python tests/s3server.py --help` runs it by hand."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


_local_s3 = _load(Path(__file__).parents[1] / "infra" / "local_s3.py")
LocalS3 = _local_s3.LocalS3
running = _local_s3.running
free_ports = _local_s3.free_ports

if __name__ == "__main__":
    _local_s3.main()
