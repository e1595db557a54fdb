// Norm, addition and norm on the CPU: unpacking, threads and registration.
//
// Floor of many rows: y and the residual read once, both results written once. What is in between
// stays in the cache.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include "isa.h"
#include "logits.h"  // scores.h names its Scoring
#include "outputs.h"

#define KERNEL "../norm_add_norm/native_kernel.h"
#include "per_isa.h"

namespace {

constexpr int64_t GRAIN = 32768;  // numbers that a thread is worth waking for

void must_be_weight(const char* name, const at::Tensor& weight, const at::Tensor& y) {
  TORCH_CHECK_VALUE(weight.dim() == 1 && weight.size(0) == y.size(-1), name, " must be (",
                    y.size(-1), ",), got shape ", weight.sizes());
  TORCH_CHECK_TYPE(weight.scalar_type() == y.scalar_type() || weight.scalar_type() == at::kFloat,
                   name, " must be ", y.dtype(), " as y or float32, got ", weight.dtype());
}

template <class T, class W>
void run(const T* y, const at::Tensor& residual, const at::Tensor& post, const at::Tensor& next,
         double eps, bool branch, at::Tensor& r, at::Tensor& z) {
  const int64_t n = post.size(0);
  const T* b = residual.const_data_ptr<T>();
  const W *p = post.const_data_ptr<W>(), *q = next.const_data_ptr<W>();
  T *to = r.mutable_data_ptr<T>(), *normed = z.mutable_data_ptr<T>();
  at::parallel_for(
      0, residual.numel() / n, std::max<int64_t>(1, GRAIN / n), [&](int64_t first, int64_t last) {
        if (branch)
          ON_BEST_ISA(norm_add_norm<true>(y, b, p, q, eps, to, normed, n, first, last));
        else
          ON_BEST_ISA(norm_add_norm<false>(y, b, p, q, eps, to, normed, n, first, last));
      });
}

std::tuple<at::Tensor, at::Tensor> norm_add_norm(const at::Tensor& y, const at::Tensor& residual,
                                                 const at::Tensor& post_weight,
                                                 const at::Tensor& next_weight, double eps,
                                                 c10::string_view placement) {
  TORCH_CHECK_VALUE(y.dim() >= 1 && y.size(-1) >= 1, "y must be (..., hidden), got shape ",
                    y.sizes());
  TORCH_CHECK_VALUE(residual.sizes() == y.sizes(), "residual must be ", y.sizes(), ", got shape ",
                    residual.sizes());
  TORCH_CHECK_TYPE(residual.scalar_type() == y.scalar_type(), "residual must be ", y.dtype(),
                   " as y, got ", residual.dtype());
  must_be_weight("post_weight", post_weight, y);
  must_be_weight("next_weight", next_weight, y);
  const bool branch = placement == "branch";
  TORCH_CHECK_VALUE(branch || placement == "sum", "placement must be branch or sum, got ",
                    placement);
  const at::Tensor a = y.contiguous(), b = residual.contiguous();
  at::Tensor r = empty(a.sizes(), a.scalar_type()), z = empty(a.sizes(), a.scalar_type());
  const bool same =
      post_weight.scalar_type() == y.scalar_type() && next_weight.scalar_type() == y.scalar_type();
  const auto dtype = same ? y.scalar_type() : at::kFloat;
  const at::Tensor p = post_weight.to(dtype).contiguous(), q = next_weight.to(dtype).contiguous();
  with_floats("y", a, [&](auto* rows) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(rows)>>;
    if (same)
      run<T, T>(rows, b, p, q, eps, branch, r, z);
    else
      run<T, float>(rows, b, p, q, eps, branch, r, z);
  });
  return {r, z};
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) { m.impl("norm_add_norm", norm_add_norm); }
