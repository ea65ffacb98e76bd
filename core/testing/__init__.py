"""The conformance kit: what a vendor's plugin promises, checked on the machine at hand.

``python -m core conform VENDOR`` and ``from core.testing.suite import *`` in a vendor's own tests run the same
list, ``core.testing.catalog.CHECKS``.
"""
