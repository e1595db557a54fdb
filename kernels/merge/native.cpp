// Two attentions over disjoint tokens as one, on the CPU. Floor: everything read and written once.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include "floats.h"
#include "isa.h"
#include "outputs.h"

#define KERNEL "../merge/native_kernel.h"
#include "per_isa.h"

namespace {

std::tuple<at::Tensor, at::Tensor> merge(const at::Tensor& out_a, const at::Tensor& lse_a,
                                         const at::Tensor& out_b, const at::Tensor& lse_b) {
  TORCH_CHECK_VALUE(out_a.sizes() == out_b.sizes() && lse_a.sizes() == lse_b.sizes(),
                    "both attentions must have one shape");
  const at::Tensor a = out_a.contiguous(), b = out_b.contiguous();
  const at::Tensor la = lse_a.contiguous(), lb = lse_b.contiguous();
  at::Tensor out = empty(a.sizes(), a.scalar_type()), lse = empty(la.sizes(), at::kFloat);
  const int64_t dim = a.size(-1), grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, dim));
  with_floats("out_a", a, [&](auto* x) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(x)>>;
    const T* y = b.const_data_ptr<T>();
    const float *p = la.const_data_ptr<float>(), *q = lb.const_data_ptr<float>();
    T* to = out.mutable_data_ptr<T>();
    float* sums = lse.mutable_data_ptr<float>();
    at::parallel_for(0, la.numel(), grain, [&](int64_t first, int64_t last) {
      ON_BEST_ISA(merge(x, p, y, q, to, sums, dim, first, last));
    });
  });
  return {out, lse};
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) { m.impl("merge", merge); }
