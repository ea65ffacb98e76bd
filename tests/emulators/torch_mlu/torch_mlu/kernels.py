"""Operators that torch_mlu adds to torch, with its signatures; computed by torch's own."""

import torch

FUSED_ADAM = (
    "fused_adam(Tensor _dummy_overflow_buf, Tensor[] grads, Tensor(a!)[] params, Tensor(b!)[] exp_avgs, "
    "Tensor(c!)[] exp_avg_sqs, float learning_rate, float beta1, float beta2, float epsilon, int step, int mode, "
    "int bias_correction, float weight_decay) -> bool"
)


def define(dispatch_key: str) -> torch.library.Library:
    """Make them known for devices of that key, as long as what is returned lives."""
    library = torch.library.Library("torch_mlu", "DEF")
    library.define(FUSED_ADAM)
    library.impl("fused_adam", fused_adam, dispatch_key)
    return library


def fused_adam(overflow, grads, params, exp_avgs, exp_avg_sqs, *numbers):
    """Mode 1 is AdamW: decay apart from the gradient. Moments are fp32, whatever the weights are."""
    lr, beta1, beta2, eps, step, mode, bias_correction, weight_decay = numbers
    assert (mode, bias_correction) == (1, 1)
    assert overflow.dtype is torch.int32
    for grad, param, exp_avg, exp_avg_sq in zip(grads, params, exp_avgs, exp_avg_sqs, strict=True):
        exp_avg.lerp_(grad.float(), 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad.float(), grad.float(), value=1 - beta2)
        size = (exp_avg_sq / (1 - beta2**step)).sqrt_().add_(eps)
        param.mul_(1 - lr * weight_decay).addcdiv_(exp_avg, size, value=-lr / (1 - beta1**step))
    return True
