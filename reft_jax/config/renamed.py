"""Keys that had other names before: what they are called now, for whoever gives an old one and for the config.json of older runs."""

import copy
import re

SHAPE = ("warmup", "hold", "final")  # of a learning rate
# (old key, new key) after "config."; * is a stage's name
KEYS = (
    ("data.name", "data.task"),
    *((f"rewards.{key}", f"verifier.{key}") for key in ("timeout_s", "memory_mb", "workers", "max_gold_failures")),
    *((f"rewards.{key}", f"verifier.{key}") for key in ("max_verifier_failures", "sandbox")),
    ("stages.*.ppo.reduce", "stages.*.reduce"),
    ("stages.*.ppo.clip", "stages.*.losses.policy.clip"),
    ("stages.*.ppo.clip_high", "stages.*.losses.policy.clip_high"),
    ("stages.*.ppo.kl_coef", "stages.*.advantage.kl.coef"),
    ("stages.*.ppo.kl_in", "stages.*.advantage.kl.in"),
    ("stages.*.ppo.gamma", "stages.*.advantage.gamma"),
    ("stages.*.ppo.lam", "stages.*.advantage.lam"),
    ("stages.*.ppo.whiten", "stages.*.advantage.whiten"),
    ("stages.*.ppo.critic", "stages.*.advantage.critic.trunk"),
    ("stages.*.ppo.value_init", "stages.*.advantage.critic.init"),
    ("stages.*.ppo.value_bias", "stages.*.advantage.critic.bias"),
    ("stages.*.ppo.value_coef", "stages.*.advantage.critic.coef"),
    ("stages.*.ppo.value_clip", "stages.*.advantage.critic.clip"),
    ("stages.*.ppo.advantage", "stages.*.advantage"),
    ("stages.*.partial_reward", "stages.*.rewards.partial.weight"),
    ("stages.*.partial_on", "stages.*.rewards.partial.on"),
    ("stages.*.own_weight", "stages.*.losses.own_gold.own"),
    ("stages.*.gold_weight", "stages.*.losses.own_gold.gold"),
    *((f"stages.*.optim.{key}", f"stages.*.optim.schedule.{key}") for key in SHAPE),
)
# Old settings of GAE that did nothing with another advantage, and of one mode of self-training in the other.
OF_GAE = ("gamma", "lam", "whiten", "critic", "value_init", "value_bias", "value_coef", "value_clip")
# Settings of data that a run decides as it begins where it is told "auto", and how it was before they were there.
DECIDED = {"bos": "off", "line_end": "prefix"}
# (key, old value) -> new value
VALUES = {("data.append_prefix", "reft"): "rollouts", ("stages.*.advantage.kl.estimator", "auto"): "unbiased"}


def told(path: str) -> str:
    """What to say of an unknown key `path` ("config.a.b") that had this name before; "" for any other."""
    key = path.removeprefix("config.")
    for old, new in KEYS:
        if found := _matched(old, key):
            return f"it is now config.{new.replace('*', found[1] if found.groups() else '')}"
    if key == "rewards":
        return "it is now config.verifier"
    return ""


def value_told(path: str, value) -> str:
    """The beginning of what to say of an illegal value that was legal before; "" for any other."""
    key = path.removeprefix("config.")
    new = [new for (old, before), new in VALUES.items() if before == value and _matched(old, key)]
    return f"it is now {new[0]!r}; " if new else ""


def _matched(old: str, key: str) -> re.Match | None:
    return re.fullmatch(re.escape(old).replace(r"\*", r"([^.]+)"), key)


def is_old(tree: dict) -> bool:
    """Whether a config's tree has keys from before."""
    return _of_rewards(tree) or any(_of_one_shape(stage) for stage in _stages(tree))


def _of_rewards(tree) -> bool:
    return isinstance(tree, dict) and "rewards" in tree and "verifier" not in tree


def _stages(tree) -> list:
    stages = tree.get("stages") if isinstance(tree, dict) else None
    return list(stages.values()) if isinstance(stages, dict) else []


def _of_one_shape(stage) -> bool:
    """Whether the stage's learning rate is from when schedules had one shape."""
    optim = stage.get("optim") if isinstance(stage, dict) else None
    return isinstance(optim, dict) and "schedule" not in optim and any(key in optim for key in SHAPE)


def modern(tree: dict) -> dict:
    """The tree of an older config.json with today's keys and values; another one as it is."""
    out = copy.deepcopy(tree)
    if _of_rewards(out):
        _modern_rewards(out)
    if isinstance(out.get("data"), dict):
        out["data"] = DECIDED | out["data"]
    for stage in _stages(out):
        if _of_one_shape(stage):
            shape = {key: stage["optim"].pop(key) for key in SHAPE if key in stage["optim"]}
            stage["optim"]["schedule"] = {"use": "linear"} | shape
        _name_estimator(stage)
    return out


def _name_estimator(stage):
    """`auto` was k1 in the reward and k3 in the loss."""
    advantage = stage.get("advantage") if isinstance(stage, dict) else None
    kl = advantage.get("kl") if isinstance(advantage, dict) else None
    if isinstance(kl, dict) and kl.get("estimator") == "auto":
        kl["estimator"] = "k3" if kl.get("in") == "loss" else "unbiased"


def _modern_rewards(out: dict):
    out["verifier"] = out.pop("rewards")
    if "name" in out["data"]:
        out["data"]["task"] = out["data"].pop("name")
    if out["data"].get("append_prefix") == "reft":
        out["data"]["append_prefix"] = VALUES["data.append_prefix", "reft"]
    for stage in out["stages"].values():
        if stage.get("kind") == "reft":
            _modern_reft(stage)
        elif stage.get("kind") == "self_train":
            weights = {"own": stage.pop("own_weight"), "gold": stage.pop("gold_weight")}
            if stage["mode"] == "online":
                stage["losses"] = {"own_gold": weights}


def _modern_reft(stage: dict):
    ppo = stage.pop("ppo")
    ppo = dict(kl_in="reward", advantage="gae", critic="shared", clip_high=0.0) | ppo
    stage["rewards"] = {"right": {}, "partial": {"weight": stage.pop("partial_reward"), "on": stage.pop("partial_on")}}
    advantage = {
        "use": ppo.pop("advantage"),
        "kl": {"in": ppo.pop("kl_in"), "coef": ppo.pop("kl_coef"), "estimator": "auto"},
    }
    of_gae = {key: ppo.pop(key) for key in OF_GAE if key in ppo}
    if advantage["use"] == "gae":
        advantage |= {key: of_gae[key] for key in ("gamma", "lam", "whiten")}
        names = dict(trunk="critic", init="value_init", bias="value_bias", coef="value_coef", clip="value_clip")
        advantage["critic"] = {new: of_gae[old] for new, old in names.items()}
    stage["advantage"] = advantage
    stage["losses"] = {"policy": {key: ppo.pop(key) for key in ("clip", "clip_high")}}
    stage["reduce"] = ppo.pop("reduce")
    stage["ppo"] = ppo
