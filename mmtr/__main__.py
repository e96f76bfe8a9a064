"""python -m mmtr TOOL [OPTIONS]: run a tool by its name, from any folder, installed or in a checkout."""

import runpy
import sys

from mmtr.config.files import MIM
from mmtr.errors import UserError, command


@command
def main() -> None:
    """Run the tool that the first argument names, with the remaining arguments."""
    tools = {path.stem: str(path) for path in sorted((MIM / 'tools').glob('*.py'))}
    name = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if name in ('-h', '--help'):
        print(f'{__doc__}\nTools: {", ".join(tools)}. Their options: python -m mmtr TOOL --help')
        return
    if name not in tools:
        raise UserError(f"There is no tool '{name}': give one of {', '.join(tools)}.")
    sys.argv[:2] = [tools[name]]
    runpy.run_path(tools[name], run_name='__main__')


if __name__ == '__main__':
    main()
