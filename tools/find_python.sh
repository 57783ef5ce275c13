#!/bin/sh
# Prints the Python that make is to use: the distribution's, if it is new enough and can make virtual environments,
# else the first one in the path, of which make then says what it lacks.
for each in /usr/bin/python3 python3; do
    if "$each" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "$each"
        exit 0
    fi
done
echo python3
