"""Self-training, offline and online, a re-ranker and the evaluation of all of them on generated problems at toy size."""

from reft_jax.configs import common


def get_config(arg=""):
    common.parse_arg(arg)
    warm = common.optim(5e-4, weight_decay=0.1)
    sizes = dict(batch_size=16, eval_every=1, eval_batch_size=32, log_every=1)
    own = dict(num_samples=4, sample_batch_size=32, max_per_question=2)
    return common.config(
        seed=0,
        model=common.model("arithmetic_base"),
        data=common.arithmetic("program", num_train=48, dev_size=16, num_test=16),
        stages=dict(
            warmup=common.sft("arithmetic_base", 1, warm, select="last", **sizes),
            offline=common.self_train("arithmetic_base", 1, warm, sample_from="warmup", save_every=2, **sizes, **own),
            online=common.self_train("warmup", 1, common.optim(3e-4), log_samples=4, **sizes, **own),
            reranker=common.reranker("warmup", "warmup", lr=1e-3, epochs=1, num_samples=4, log_every=2),
            evaluate=common.evaluate(
                dict(warmup="warmup", offline="offline", online="online"),
                num_samples=4,
                num_questions=8,
                batch_size=32,
                rerankers=dict(warmup="reranker", online="reranker"),
            ),
        ),
    )
