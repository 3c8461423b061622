# Sourced by quickstart.sh and test.sh: makes .venv in the repository, once for each state of the dependencies.
# PYTHON names another interpreter; ENVIRONMENT another folder.
python=${PYTHON:-python3}
environment=${ENVIRONMENT:-.venv}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed, $("$python" --version) was found; set PYTHON=/path/to/python3.11" >&2
  exit 1
}
stamp=$(cat pyproject.toml infra/constraints.txt | cksum)
if [ "$(cat "$environment/stamp" 2>/dev/null)" != "$stamp" ]; then
  echo "installing into $environment"
  "$python" -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet --upgrade pip
  PYTHONWARNINGS=ignore "$environment/bin/python" -m pip install --quiet --constraint infra/constraints.txt --editable '.[dev]'
  echo "$stamp" > "$environment/stamp"
fi
PATH="$(cd "$environment/bin" && pwd):$PATH"
