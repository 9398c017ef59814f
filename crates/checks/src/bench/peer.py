"""One turn of the peer: a stage in torch, transformers and TRL's PPO, with random weights, all of it in float32
or in bfloat16.

    peer.py versions
    peer.py STAGE FAMILY LAYERS WIDTH HEADS KV_HEADS INNER VOCAB PROMPTS K PROMPT COMPLETION STEPS THREADS PRECISION

The strongest plain form of each stage: whole sequences without padding, one forward and backward a
step, the fused loss that the library offers, its AdamW. Prints one JSON line: seconds of every step but
the first, tokens per step, most resident memory in megabytes.
"""

import json
import os
import resource
import sys
import tempfile
import time
import warnings

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
warnings.filterwarnings("ignore")

import torch
import transformers


DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def configuration(family, layers, width, heads, kv_heads, inner, vocab):
    ends = dict(bos_token_id=vocab - 1, eos_token_id=vocab - 1, pad_token_id=vocab - 2, num_labels=1)
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=vocab, n_positions=1024, n_embd=width, n_layer=layers, n_head=heads, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, **ends,
        )
    return transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=2048,
        tie_word_embeddings=True, **ends,
    )


def language_model(config):
    return transformers.AutoModelForCausalLM.from_config(config).to(DTYPES[sys.argv[-1]])


def scorer(config):
    return transformers.AutoModelForSequenceClassification.from_config(config).to(DTYPES[sys.argv[-1]])


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-5)


def sft(config, prompts, k, prompt, completion):
    model = language_model(config)
    optimizer = adamw(model)
    ids = torch.randint(0, config.vocab_size - 2, (prompts, prompt + completion))

    def step():
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, ids.numel()


def reward_model(config, prompts, k, prompt, completion):
    model = scorer(config)
    optimizer = adamw(model)
    ids = torch.randint(0, config.vocab_size - 2, (prompts, k, prompt + completion))
    ids[:, :, :prompt] = ids[:, :1, :prompt]
    better, worse = torch.triu_indices(k, k, 1)

    def step():
        scores = model(input_ids=ids.flatten(0, 1)).logits.view(prompts, k)
        (-torch.nn.functional.logsigmoid(scores[:, better] - scores[:, worse]).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, ids.numel()


def generate(config, prompts, k, prompt, completion):
    model = language_model(config).eval()
    ids = torch.randint(0, config.vocab_size - 2, (prompts, prompt))
    mask = torch.ones_like(ids)

    @torch.no_grad()
    def step():
        model.generate(
            ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, min_new_tokens=completion,
            max_new_tokens=completion,
        )

    return step, prompts * completion


def timed(step, steps):
    seconds = []
    for _ in range(steps + 1):
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
    return seconds


def ppo(config, prompts, k, prompt, completion, steps):
    """Seconds of whole updates of TRL's trainer, between its calls of the learning-rate scheduler."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    vocab = config.vocab_size
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="t0"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=f"t{vocab - 1}", pad_token=f"t{vocab - 2}", padding_side="left"
    )
    episodes = prompts * (steps + 1)
    data = Dataset.from_dict({"input_ids": torch.randint(0, vocab - 2, (episodes, prompt)).tolist()})
    with tempfile.TemporaryDirectory() as folder:
        arguments = PPOConfig(
            output_dir=folder, per_device_train_batch_size=prompts, gradient_accumulation_steps=1,
            num_mini_batches=4, num_ppo_epochs=1, total_episodes=episodes, response_length=completion,
            local_rollout_forward_batch_size=prompts, stop_token=None, kl_coef=0.02, temperature=1.0, report_to=[],
            save_strategy="no", num_sample_generations=0, use_cpu=True, bf16=False, learning_rate=1e-5,
            logging_steps=10**9, disable_tqdm=True,
        )
        trainer = PPOTrainer(
            args=arguments, processing_class=tokenizer, model=language_model(config), ref_model=language_model(config),
            reward_model=scorer(config), value_model=scorer(config), train_dataset=data,
            eval_dataset=data.select(range(prompts)),
        )
        marks = [time.perf_counter()]
        scheduler = trainer.lr_scheduler.step

        def mark(*args, **kwargs):
            marks.append(time.perf_counter())
            return scheduler(*args, **kwargs)

        trainer.lr_scheduler.step = mark
        trainer.train()
    assert len(marks) == steps + 2, f"{len(marks) - 1} updates, {steps + 1} expected"
    return [b - a for a, b in zip(marks, marks[1:])]


def main():
    if sys.argv[1] == "versions":
        import trl

        print(json.dumps(dict(torch=torch.__version__, transformers=transformers.__version__, trl=trl.__version__)))
        return
    stage, family = sys.argv[1:3]
    layers, width, heads, kv_heads, inner, vocab, prompts, k, prompt, completion, steps, threads = map(int, sys.argv[3:-1])
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = configuration(family, layers, width, heads, kv_heads, inner, vocab)
    if stage == "ppo":
        seconds, tokens = ppo(config, prompts, k, prompt, completion, steps), prompts * completion
    else:
        kinds = {"sft": sft, "reward-model": reward_model, "reward-model-long": reward_model}
        step, tokens = kinds.get(stage, generate)(config, prompts, k, prompt, completion)
        seconds = timed(step, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(dict(seconds=seconds[1:], first=seconds[0], tokens=tokens, peak_mb=peak)))


if __name__ == "__main__":
    main()
