"""8. Open: beat the ensemble.

Score the stored responses by a proxy of your own, from all reward models' scores and the responses' texts.
The best of 64 by it must have a higher gold than the best of 64 by each aggregator of ensemble.py over all
reward models, by .1 and by two standard errors over the posts; even where the aggregator takes off, for each
word of a response, whatever serves it best. Both are best of the same n, so at the same KL. You see neither
gold nor the posts. What you know about reward models, raters and writers is fair.

Read: experiments/world.py up to `judge`.
Hint: start from rewards.mean(0) and add to it. What do all responses to a post know that none knows alone?
"""


def proxy(rewards, pretrain_seed, responses):
    """rewards: an array (M, posts, n), the scores of M reward models in standard deviations;
    pretrain_seed: (M,), equal for models of one pretraining; responses: (posts, n), their texts -> an
    array (posts, n), your score of each. Posts, and the responses to a post, are in no particular order.
    You may import SLOTS, WORDS, DETAILS and KIND from world."""
    raise NotImplementedError("proxy is yours to write")
