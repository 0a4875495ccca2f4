#!/bin/bash
# Makes the videos of a sweep with Slurm: one job array for each level of its graph. All nodes of a
# level can run at the same time. A level begins when the one before has ended.
#
#   examples/slurm.sh SWEEP.toml [OPTION OF SBATCH]...
#   examples/slurm.sh sweep.toml --partition gpu --gres gpu:1 --time 2:00:00
#
# The cache must be a folder that all nodes of the cluster share: set WANPIPE_CACHE to its full path.
# Run the same command again to make what failed.
set -euo pipefail

sweep=$1
shift
export WANPIPE_CACHE=${WANPIPE_CACHE:-$PWD/cache}
work=$(mktemp -d "$PWD/sweep.XXXXXX")

wanpipe sweep "$sweep" --plan >"$work/plan.jsonl"

# one file for each level, with one command in each line
python3 - "$work" <<'PYTHON'
import json, pathlib, sys

work = pathlib.Path(sys.argv[1])
for line in (work / "plan.jsonl").open(encoding="utf-8"):
    node = json.loads(line)
    if node["level"] is None:
        continue  # it exists
    if node["output"]:
        pathlib.Path(node["output"]).parent.mkdir(parents=True, exist_ok=True)
    with (work / f"level-{node['level']:03}").open("a", encoding="utf-8") as level:
        # one line, even if a prompt has several: $'...' spells them out
        spelled = str.maketrans({"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r"})
        level.write(" ".join(f"$'{word.translate(spelled)}'" for word in node["command"]) + "\n")
PYTHON

cat >"$work/job.sh" <<'JOB'
#!/bin/bash
command=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$1")
srun bash -c "$command"
JOB

after=()
for level in "$work"/level-*; do
    [ -e "$level" ] || break # everything exists
    last=$(($(wc -l <"$level") - 1))
    job=$(sbatch --parsable --array "0-$last" --output "$work/%A-%a.log" "${after[@]}" "$@" \
        "$work/job.sh" "$level")
    echo "$(basename "$level"): $((last + 1)) commands: job ${job%%;*}"
    after=(--dependency "afterany:${job%%;*}")
done
