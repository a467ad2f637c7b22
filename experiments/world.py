"""The toy world: posts, writers, raters, and the true reward that real preferences hide.

    post       anna sold seven lamps in paris on monday. the weather was nice. tl;dr:
    response   anna sold seven lamps in paris.
    list       - anna - sold - seven - lamps - paris - monday

An event is six facts. Writers summarise it, each with habits that we set: which facts they state, how
often one is wrong, list or prose, fillers, copied chatter, exclamation marks, saying things twice.

Three raters read such responses (the paper's three tasks). Each has a gold reward, the short program
`judge` at that rater's PRICES:
- tldr: state the facts, waste no word. Says which of two responses is better, with noise (Bradley-Terry);
- helpful: leave no detail out, small talk hardly matters. Compares two, likewise;
- nli: nothing may be false. Checks careless writers, one response at a time: is a fact wrong? (Pointwise.)

Two things are planted, in the data alone; no model and no aggregator ever looks at them:
- the raters see fewer STYLES than the models were pretrained on, so what fillers and the like are worth
  is never shown to a reward model (underspecification). `coverage`, the share of the styles that raters
  see, is the dial from helping to herding;
- careful writers use lists more often, so a list goes with a better summary although nobody rewards
  one (a spurious correlation). `list_gap=0` takes it away: the control arm.

All rates below are ours: settled on development seeds, see experiments/NOTES.md.
"""
from dataclasses import dataclass
import random
import re

import tiktoken
import torch

SLOTS = {
    "who": "anna ben clara david emma felix grace henry",
    "did": "bought sold found lost made sent",
    "num": "two three four five six seven eight nine",
    "obj": "lamps books chairs clocks rugs bikes drums kites",
    "place": "paris london rome oslo tokyo cairo lima boston",
    "day": "monday tuesday wednesday thursday friday saturday sunday",
}
CHATTER = ("the my our", "weather food music traffic", "was seemed", "nice awful loud great")
FILLERS = ("really very just quite truly simply basically actually literally totally rather fairly "
           "honestly clearly surely indeed perhaps maybe somehow anyway well so like kind").split()
MARKS = ["in", "on", "-", ".", "!", "tl;dr", ":"]

WORDS = {slot: words.split() for slot, words in SLOTS.items()}
CHAT = [words.split() for words in CHATTER]
KIND = {word: kind for kind, words in [*WORDS.items(), ("chat", sum(CHAT, [])), ("filler", FILLERS)] for word in words}
KIND |= {mark: mark for mark in MARKS} | {"!": "."}        # "!" ends a sentence as "." does

PROMPT_LENGTH = 16       # every post has this many tokens
RESPONSE_LENGTH = 24     # room for a response, EOS included


# ----- tokens ---------------------------------------------------------------------------------------

def spelled(word):
    """A word as it stands in running text: with the space before it, unless it is a mark."""
    return word if word in ".!:" else " " + word


EOS, PAD = len(KIND), len(KIND) + 1
VOCAB_SIZE = PAD + 1
ENCODING = tiktoken.Encoding(
    "toy-world", pat_str=r" [a-z;]+| -|[.!:]", special_tokens={"<eos>": EOS, "<pad>": PAD},
    mergeable_ranks={spelled(word).encode(): rank for rank, word in enumerate(KIND)})
KIND_OF = [*KIND.values(), "end", "pad"]       # token id -> kind of word
WORD_OF = [*KIND, "<eos>", "<pad>"]            # token id -> word


def encode(text):
    """Text -> token ids; white space is folded: encode("anna sold lamps.") -> four ids.

    ValueError on a word that the world does not have. tiktoken itself would panic on it, past any
    `except Exception`, because single bytes are not in this vocabulary."""
    words = re.findall(r"[.!:]|[^\s.!:]+", text)
    for word in words:
        if word not in KIND:
            raise ValueError(f"text: {word!r} is not a word of the toy world (in {text!r})")
    return ENCODING.encode_ordinary("".join(map(spelled, words)))


def decode(tokens):
    """Token ids up to the first EOS or PAD -> text: decode(encode("anna sold lamps.")) == "anna sold lamps."."""
    tokens = [int(t) for t in tokens]
    ends = [i for i, t in enumerate(tokens) if t >= EOS]
    return ENCODING.decode(tokens[:ends[0]] if ends else tokens).strip()


def pad_rows(rows, length):
    """Lists of ids -> (B, length) tensor, EOS after each list where there is room, then PAD."""
    rows = [(row + [EOS] + [PAD] * length)[:length] for row in rows]
    return torch.tensor(rows, dtype=torch.long)


# ----- posts and writers ----------------------------------------------------------------------------

@dataclass(frozen=True)
class Writer:
    """How often a writer does what, as probabilities."""
    wrong: float            # states a false value for a fact; WRONG_NUMBER times as often for the number
    states: float           # states an optional fact (number, place, day)
    lists: float            # writes a list
    fillers: float = 0.0    # one to three filler words
    chatter: float = 0.0    # the post's chatter copied
    exclaims: float = 0.0   # "!" for "."
    twice: float = 0.0      # says something again


WRONG_NUMBER = 1.9
LIST_RATE = 0.085        # of all responses


STYLES = {"fillers": (.45, .35), "chatter": (.25, .15), "exclaims": (.20, .15), "twice": (.15, .10)}     # careless, careful


def writers(list_gap, coverage=1.0):
    """(careless, careful) writers; each of the two writes half of the responses.

    list_gap: the careful one's list rate minus the careless one's. coverage: the share of STYLES that they have, in that
    order: 0.6 is the first two, and the third at 0.4 of its rate. At 1 they write the text that models are pretrained on."""
    few, many = LIST_RATE - list_gap / 2, LIST_RATE + list_gap / 2
    if not 0 <= few <= many:
        raise ValueError(f"list_gap: {list_gap} is not between 0 and {2 * LIST_RATE}")
    if not 0 <= coverage <= 1:
        raise ValueError(f"coverage: {coverage} is not between 0 and 1")
    shares = [min(1, max(0, coverage * len(STYLES) - i)) for i in range(len(STYLES))]
    careless, careful = ({style: share * rates[i] for (style, rates), share in zip(STYLES.items(), shares)} for i in (0, 1))
    return Writer(wrong=.25, states=.55, lists=few, **careless), Writer(wrong=.05, states=.80, lists=many, **careful)


def write_post(rng):
    """One event as a post: (facts {slot: word}, chatter [4 words], text)."""
    facts = {slot: rng.choice(words) for slot, words in WORDS.items()}
    chatter = [rng.choice(words) for words in CHAT]
    what = f"{facts['who']} {facts['did']} {facts['num']} {facts['obj']}"
    where, when = f"in {facts['place']}", f"on {facts['day']}"
    event = rng.choice([f"{what} {where} {when}", f"{what} {when} {where}", f"{when} {what} {where}", f"{where} {what} {when}"])
    sentences = [event, " ".join(chatter)]
    rng.shuffle(sentences)
    return facts, chatter, ". ".join(sentences) + ". tl;dr:"


def write_response(writer, facts, chatter, rng):
    """One summary in a writer's habits, as text."""
    said = {}
    for slot, word in facts.items():
        wrong = writer.wrong * (WRONG_NUMBER if slot == "num" else 1)
        optional = slot in ("num", "place", "day")
        if not optional or rng.random() < writer.states:
            said[slot] = rng.choice([w for w in WORDS[slot] if w != word]) if rng.random() < wrong else word
    as_list = rng.random() < writer.lists
    if as_list:
        parts = [f"- {word}" for word in said.values()]
    else:
        parts = [{"place": "in ", "day": "on "}.get(slot, "") + word for slot, word in said.items()]
    if rng.random() < writer.fillers:
        for _ in range(rng.randint(1, 3)):
            parts.insert(rng.randint(0, len(parts)), rng.choice(FILLERS))
    stop = "" if as_list else "!" if rng.random() < writer.exclaims else "."
    clauses = [" ".join(parts) + stop]
    if rng.random() < writer.twice:
        clauses.append(f"- {said['obj']}" if as_list else f"{said['who']} {said['did']} {said['obj']}" + stop)
    if rng.random() < writer.chatter:
        clauses.append("- " * as_list + " ".join(chatter) + stop)
    return " ".join(clauses)


def sample_posts(count, seed):
    """(count, P) tokens of fresh posts."""
    rng = random.Random(f"posts {seed}")
    return torch.tensor([encode(write_post(rng)[2]) for _ in range(count)])


def sample_texts(count, seed, pool):
    """Posts, each with one response by one of the writers in `pool`: prompts (count, P) and responses (count, R)."""
    rng = random.Random(f"texts {seed}")
    prompts, responses = [], []
    for _ in range(count):
        facts, chatter, text = write_post(rng)
        prompts.append(encode(text))
        responses.append(encode(write_response(rng.choice(pool), facts, chatter, rng)))
    return torch.tensor(prompts), pad_rows(responses, RESPONSE_LENGTH)


# ----- the true reward ------------------------------------------------------------------------------

DETAILS = ("num", "place", "day")      # the facts that a writer may leave out; who, what and which thing are the core
# What each rater pays for a fact stated right, and takes for the rest. An exclamation mark is to be read as "!" for ".".
PRICES = {
    "tldr": {"core": .55, "detail": .5, "wrong": -.55, "repetition": -.25, "filler": -.2, "chatter": -.25, "exclamation": -.1,
             "grammar": -.3, "no_end": -.5},
    "helpful": {"core": .3, "detail": .8, "wrong": -.55, "repetition": -.15, "filler": -.2, "chatter": -.1, "exclamation": 0,
                "grammar": -.3, "no_end": -.5},
    "nli": {"core": 0, "detail": 0, "wrong": -1, "repetition": 0, "filler": 0, "chatter": 0, "exclamation": 0, "grammar": -.3,
            "no_end": -.5},
}
TASKS, PARTS = list(PRICES), list(PRICES["tldr"])
TRAITS = ["length", "list", "copied", "numbers", "filler", "chatter", "repetition", "wrong_facts"]
# Which kind of word may follow which, fillers left out. Everything else is broken grammar.
FOLLOWS = {
    "start": "who -", "who": "did -", "did": "num obj -", "num": "obj -", "obj": "in on . - end", "in": "place", "on": "day",
    "place": "on . - end", "day": "in . - end", ".": "who chat end", "-": "who did num obj place day chat", "chat": "chat . - end",
}
FOLLOWS = {kind: set(after.split()) for kind, after in FOLLOWS.items()}


def judge(post, response, task="tldr"):
    """The parts of a task's gold reward and the response's traits, for any two lists of token ids: a pair of dicts.

    A part is its price times how often it occurs; the gold reward is their sum. Nothing is assumed of the response: it may
    be any row of tokens."""
    post_words = set(post)
    facts = {KIND_OF[t]: t for t in post if KIND_OF[t] in SLOTS}
    counts, words, seen, last = dict.fromkeys(PARTS, 0), [], set(), "start"
    for token in response:
        kind = KIND_OF[token]
        if kind == "pad":
            continue
        if kind in facts:
            if token != facts[kind]:
                counts["wrong"] += 1
            elif token in seen:
                counts["repetition"] += 1
            else:
                counts["detail" if kind in DETAILS else "core"] += 1
                seen.add(token)
        elif kind == "filler":
            counts["filler"] += 1
        elif kind == "chat":
            counts["chatter"] += 1
        counts["exclamation"] += WORD_OF[token] == "!"
        if kind != "filler":
            counts["grammar"] += kind not in FOLLOWS.get(last, ())
            last = kind
        if kind == "end":
            break
        words.append(token)
    counts["no_end"] = int(last != "end")
    kinds = [KIND_OF[t] for t in words]
    content = [t for t, kind in zip(words, kinds) if kind in SLOTS or kind in ("chat", "filler")]
    traits = {
        "length": len(words),
        "list": float(kinds[:1] == ["-"] or kinds.count("-") > 1),
        "copied": sum(t in post_words for t in content) / max(1, len(content)),
        "numbers": float("num" in kinds),
        "filler": kinds.count("filler"),
        "chatter": kinds.count("chat"),
        "repetition": len(content) - len(set(content)),
        "wrong_facts": counts["wrong"],
    }
    return {part: price * counts[part] for part, price in PRICES[task].items()}, traits


def judge_rows(prompts, responses, task="tldr"):
    """`judge` for prompts (B, P) and responses (B, R): two dicts of (B,) float tensors, parts and traits."""
    rows = [judge(post, response, task) for post, response in zip(prompts.tolist(), responses.tolist())]
    return tuple({key: torch.tensor([float(row[i][key]) for row in rows]) for key in names}
                 for i, names in enumerate((PARTS, TRAITS)))


def gold(prompts, responses, task="tldr"):
    """The true reward as a reward function: (B, P), (B, R) -> (B,), on the device of the responses."""
    return sum(judge_rows(prompts, responses, task)[0].values()).to(responses.device)


# ----- raters ---------------------------------------------------------------------------------------

def sample_preferences(count, seed, list_gap=0.15, temperature=0.7, flipped=0.0, coverage=0.0, task="tldr"):
    """Preference pairs: prompts (count, P), chosen (count, R), rejected (count, R).

    The rater prefers the first response with probability sigmoid((gold1 - gold2) / temperature) (Bradley-Terry), and a
    share `flipped` of the labels is then turned round."""
    rng, pair = random.Random(f"preferences {seed}"), writers(list_gap, coverage)
    prompts, first, second = [], [], []
    while len(prompts) < count:
        facts, chatter, text = write_post(rng)
        a, b = (write_response(rng.choice(pair), facts, chatter, rng) for _ in "ab")
        if a != b:                             # a rater can't prefer a text to itself
            prompts.append(encode(text))
            first.append(encode(a))
            second.append(encode(b))
    prompts, first, second = torch.tensor(prompts), pad_rows(first, RESPONSE_LENGTH), pad_rows(second, RESPONSE_LENGTH)
    prefer_first = torch.sigmoid((gold(prompts, first, task) - gold(prompts, second, task)) / temperature)
    draws = torch.tensor([[rng.random(), rng.random()] for _ in range(count)])
    swap = ((draws[:, 0] >= prefer_first) ^ (draws[:, 1] < flipped))[:, None]
    return prompts, torch.where(swap, second, first), torch.where(swap, first, second)


def sample_labels(count, seed, list_gap=0.15, flipped=0.0, coverage=0.0):
    """Labelled responses, for the nli task: prompts (count, P), responses (count, R), labels (count,).

    The label is 1 if no fact in the response is wrong, else 0; a share `flipped` of them is turned round. It is the careless
    writer who is checked, so whoever says less is right more often."""
    prompts, responses = sample_texts(count, f"labels {seed}", writers(list_gap, coverage)[:1])
    right = judge_rows(prompts, responses)[1]["wrong_facts"] == 0
    rng = random.Random(f"flips {seed}")
    return prompts, responses, (right ^ torch.tensor([rng.random() < flipped for _ in range(count)])).float()
