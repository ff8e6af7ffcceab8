"""Every reducer passes the checks of imbalanced-learn and scikit-learn."""

import pytest
from imblearn.utils import estimator_checks as imblearn_checks
from sklearn.utils import estimator_checks as sklearn_checks

from drip.reduction import available


def each_check(checks):
    """What the library's ``parametrize_with_checks`` gives, as the list that pytest asks for."""
    cases = [
        case
        for method in available().values()
        for case in checks.estimator_checks_generator(method(random_state=0))
    ]
    names = [f"{estimator.name}-{check.func.__name__}" for estimator, check in cases]
    return pytest.mark.parametrize(("estimator", "check"), cases, ids=names)


@each_check(imblearn_checks)
def test_reducer_passes_the_sampler_checks_of_imbalanced_learn(estimator, check):
    check(estimator)


@each_check(sklearn_checks)
def test_reducer_passes_the_estimator_checks_of_scikit_learn(estimator, check):
    check(estimator)
