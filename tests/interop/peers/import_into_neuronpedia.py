"""Runs in an environment of its own: Neuronpedia's own import into a PostgreSQL that has Neuronpedia's own tables.

python import_into_neuronpedia.py FOLDER REPOSITORY COMMIT

What runs of Neuronpedia, at the commit: every migration of its database; ``importJsonlString`` of lib/db/import.ts,
which its admin page calls for features and activations; and the schemas of records that are generated for its API, for
release, model, source set and source. The admin page gives these four to Prisma, whose client does not run here: they
are inserted by SQL. Nor does anything run that fetches from its bucket. FOLDER/neuronpedia is the export.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pgserver

exported, repository, commit = Path(sys.argv[1]).absolute(), sys.argv[2], sys.argv[3]
WEB = "apps/webapp"
CREATOR = "clkht01d40000jv08hvalcvly"
TAKEN = {"import.ts": f"{WEB}/lib/db/import.ts", "schemas.ts": f"{WEB}/prisma/generated/zod/index.ts"}


def git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", repository, *arguments], check=True, capture_output=True, text=True).stdout


with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    for name, path in TAKEN.items():
        (folder / name).write_text(git("show", f"{commit}:{path}"))
    paths = git("ls-tree", "-r", "--name-only", commit, f"{WEB}/prisma/migrations").split()
    server = pgserver.get_server(folder / "database")
    try:
        migrations = sorted(path for path in paths if path.endswith(".sql"))
        for path in migrations:
            server.psql(git("show", f"{commit}:{path}"))
        server.psql(f"""INSERT INTO "User" (id, name, "emailUnsubscribeCode") VALUES ('{CREATOR}', 'creator', 'x');""")
        address = {"POSTGRES_URL_NON_POOLING": server.get_uri(), "TZ": "UTC"}
        script = ["node", str(Path(__file__).with_suffix(".js")), str(folder), str(exported / "neuronpedia")]
        modules = {"NODE_PATH": str(Path(sys.prefix) / "node_modules")}
        done = subprocess.run(script, check=True, capture_output=True, text=True, env=os.environ | address | modules)
    finally:
        server.cleanup()
found = json.loads(done.stdout.splitlines()[-1]) | {
    "peer": f"Neuronpedia {commit[:8]}",
    "migrations": len(migrations),
}
(exported / "found.neuronpedia.json").write_text(json.dumps(found))
