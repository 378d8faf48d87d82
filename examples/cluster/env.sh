# shellcheck shell=bash disable=SC2034
# What a run on a Slurm cluster is made of. Copy it, fill it in, and name the copy: BAR_ENV=my.sh examples/cluster/submit.sh
# Every path must be the same on all nodes. Partition and account: export SBATCH_PARTITION and SBATCH_ACCOUNT, which sbatch reads.

RECIPE=olmo2_7b
OUT=/path/to/runs/bar
BASE=/path/to/OLMo-2-1124-7B # of one dtype with the anchor: save it in bfloat16 if it came in float32
ANCHOR=/path/to/BAR-7B
DATA=/path/to/data # megatron_bar/recipes/olmo2_7b.py lists its files

# How Python starts: PYTHON where jobs are submitted, TORCHRUN on a node. With the image of the Dockerfile, in Apptainer:
# TORCHRUN=(apptainer exec --nv --bind /path image.sif torchrun); by pyxis: TORCHRUN=(torchrun) and
# SRUN=(--container-image=image.sqsh --container-mounts=/path:/path --container-workdir="$PWD").
PYTHON=(.venv/bin/python)
TORCHRUN=(.venv/bin/python -m torch.distributed.run) # not .venv/bin/torchrun: an image's own torch puts none there
SRUN=()
# More options of every sbatch, such as --qos=... or --gres=gpu:8 where --gpus-per-node is not known.
SBATCH=()
GPUS=8 # of a node

# Changes to the recipe, in every job.
CHANGES=(base="$BASE" anchor="$ANCHOR" data="$DATA")
# In those of RLVR: vLLM on the job's last node, one round behind; * is every expert that has the stage. It is started by srun
# from rank 0's machine, which a container may not have, and gets the weights through a folder that both see (handover). Beside
# the trainer instead, on one node (--nodes=1 in rlvr.sbatch): ENGINE_NODES=0, RLVR_GPUS=4, no handover, python=$ENGINE_PYTHON,
# tensor=4 and devices=4,5,6,7, which must be escaped in braces (4\,5\,6\,7). With ENGINE_NODES=0 and RLVR=() the trainer itself
# answers.
RLVR=(experts.'*'.rlvr.rl.{lag=1,importance_cap=2,engine.{name=vllm,python=examples/cluster/engine.sh,tensor=8,handover="$OUT/handover"}})
RLVR_GPUS=$GPUS # that train, of a node
ENGINE_NODES=1
ENGINE_PYTHON=/path/to/vllm/bin/python

# The experts with their stages, one after another; experts side by side. Behind the router: stages such as evaluate and report,
# where the recipe has an evaluation.
CHAINS=("math midtrain sft rlvr" "code midtrain sft rlvr" "safety sft" "tool_use sft")
AFTER=()
