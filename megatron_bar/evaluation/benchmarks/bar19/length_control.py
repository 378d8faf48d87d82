"""The length-controlled win rate (Dubois et al. 2024, arXiv 2404.04475).

A logistic regression of the judge's preference on tanh of the difference in length, the instruction's
difficulty and the model; the win rate is its mean prediction at no difference. Preferences between the
baseline and its own longer and shorter answers say what length alone is worth: they are learned besides.
"""

from dataclasses import dataclass

import numpy as np

from megatron_bar.errors import BarError

STRENGTHS = np.logspace(-4, 4, 10)
FOLDS = 5
GAMED_WEIGHT = 0.2 / 2
"""Regularisation of the published fit, for each of two gamed answers."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    value: float
    """Probability that the model's answer is preferred."""
    longer: int
    """Characters that the baseline's answer has more than the model's."""
    difficulty: float


def controlled(preferences: list[Preference], gamed: list[list[list[float]]]) -> float:
    """Returns the win rate, from 0 to 1; ``gamed``: of each item the preferences of the gamed answers, each a
    probability and its standardised difference in length. Needs scikit-learn."""
    longer = np.array([preference.longer for preference in preferences], dtype=float)
    spread = longer.std(ddof=1)
    difficulty = np.array([preference.difficulty for preference in preferences])
    ones = np.ones_like(difficulty)
    own = np.stack([np.tanh(longer / spread if spread else longer), difficulty, ones], axis=1)
    models = range(max(map(len, gamed)))
    # The published file's order, model by model: the folds are cut from it.
    places = [(item, model) for model in models for item in range(len(gamed)) if model < len(gamed[item])]
    others = [[np.tanh(gamed[item][model][1]), difficulty[item], 0.0] for item, model in places]
    features = np.concatenate([np.array(others).reshape(-1, 3), own])
    values = [gamed[item][model][0] for item, model in places]
    targets = np.array(values + [preference.value for preference in preferences])
    weights = np.concatenate([np.full(len(places), GAMED_WEIGHT), ones])
    at_no_difference = own * [0.0, 1.0, 1.0]
    return float(fitted(features, targets, weights).predict_proba(at_no_difference)[:, 1].mean())


def fitted(features: np.ndarray, targets: np.ndarray, weights: np.ndarray):
    """Returns the regression on probabilities, of the strength that does best on held-out folds."""
    try:
        from sklearn.model_selection import GroupKFold
    except ImportError:
        raise BarError(
            "length-controlled win rate: expected the package scikit-learn, found none; "
            "pip install 'megatron_bar[eval]'"
        ) from None
    groups = np.arange(len(targets))
    folds = list(GroupKFold(n_splits=FOLDS).split(features, groups=groups))

    def loss(strength: float) -> float:
        return float(np.mean([_loss(features, targets, weights, *fold, strength) for fold in folds]))

    return _fit(features, targets, weights, min(STRENGTHS, key=loss))


def _fit(features: np.ndarray, targets: np.ndarray, weights: np.ndarray, strength: float):
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=123
    )
    labels = np.repeat([1, 0], len(targets))
    shares = np.concatenate([weights * targets, weights * (1 - targets)])
    return model.fit(np.concatenate([features, features]), labels, sample_weight=shares)


def _loss(features, targets, weights, learned, held, strength: float) -> float:
    model = _fit(features[learned], targets[learned], weights[learned], strength)
    said = np.clip(model.predict_proba(features[held])[:, 1], 1e-15, 1 - 1e-15)
    losses = targets[held] * np.log(said) + (1 - targets[held]) * np.log(1 - said)
    return -float(np.mean(weights[held] * losses))
