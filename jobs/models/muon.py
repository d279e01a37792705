"""torch.optim.Muon, with matrices of one shape orthogonalised together: the same steps in a tenth of the launches."""
import torch

STEPS = 5
A, B, C = 3.4445, -4.775, 2.0315  # the quintic iteration of Jordan and others (2024)
EPS = 1e-7


def orthogonalised(matrices):
    """The nearest orthogonal matrices, nearly: singular values come close to 1. matrices (N, rows, columns)"""
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = A * x + torch.baddbmm(gram, gram, gram, beta=B, alpha=C) @ x
    return x.mT if tall else x


class Muon(torch.optim.Muon):
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for shape, matrices in by_shape.items():
                gradients = [p.grad for p in matrices]
                for p in matrices:
                    if not self.state[p]:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                kept = [self.state[p]["momentum_buffer"] for p in matrices]
                torch._foreach_lerp_(kept, gradients, 1 - group["momentum"])
                updates = orthogonalised(torch.stack(torch._foreach_lerp(gradients, kept, group["momentum"])))
                rate = group["lr"] * 0.2 * max(shape) ** 0.5  # as large as an update of AdamW
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(updates.to(matrices[0].dtype)), alpha=-rate)
