"""Engine ``megatron``: tensor, pipeline and data parallelism by megatron-core, as it is released.

``config`` derives Megatron's arguments from the plan, ``model`` builds one pipeline stage, ``weights`` knows where
each tensor of a released checkpoint lies in it, ``facade`` stands in for ``torch.cuda`` on other devices, and
``engine`` runs the schedule.
"""
