"""A convolution whose weight gradient is fast on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 512  # input channels


class WideConv2d(nn.Conv2d):
    """nn.Conv2d without bias for many input channels, with the same values, gradients and parameter names.

    oneDNN 3.12 computes the weight gradient of PSPNet-50's cls.0 (4096 -> 512 channels, 3x3) at a fifth of the
    rate that it reaches for 512 input channels, and spends a third of the training step there (bfloat16 with AMX;
    benchmark/step.py measures it). Here the CPU computes that gradient for 512 input channels at a time.
    """

    def forward(self, x: Tensor) -> Tensor:
        if (
            x.device.type != "cpu"
            or self.in_channels <= CHUNK
            or not (torch.is_grad_enabled() and self.weight.requires_grad)
        ):
            return super().forward(x)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):  # a custom Function is outside autocast's reach
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        with torch.autocast("cpu", enabled=False):
            return _ChunkedWeightGrad.apply(x, weight, self.stride, self.padding, self.dilation)


class _ChunkedWeightGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, stride, padding, dilation):
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding, dilation
        return F.conv2d(x, weight, None, stride, padding, dilation)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)

        def gradients(x, weight, wanted):
            return torch.ops.aten.convolution_backward(
                grad, x, weight, None, *ctx.geometry, False, (0, 0), 1, [*wanted, False]
            )

        grad_x = gradients(x, weight, (True, False))[0] if ctx.needs_input_grad[0] else None
        chunks = zip(x.split(CHUNK, 1), weight.split(CHUNK, 1), strict=True)
        grad_weight = torch.cat([gradients(*chunk, (False, True))[1] for chunk in chunks], 1)
        return grad_x, grad_weight, None, None, None
