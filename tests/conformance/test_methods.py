"""Each public method of the SDK's clients, in both of its forms: what it must do is in ../sdk_clients.py and
../sdk_rest.py.
"""

import pytest
import sdk_clients  # noqa: F401  (registers its exercises)
import sdk_rest  # noqa: F401
from sdk_world import EXERCISES, Do

from helpers.stub_tinker.support import expand

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.mark.parametrize("name", expand(dict.fromkeys(EXERCISES, "")))
def test_method(world, name):
    both_forms = f"{name.removesuffix('_async')}[_async]"
    EXERCISES[both_forms if both_forms in EXERCISES else name](world, Do(name.endswith("_async")))
