// Permutation of token copies by expert on the CPU: native.h computes.
#include <atomic>
#include <limits>
#include <tuple>

#include <torch/library.h>

#include "../permute/native.h"
#include "ranges.h"

namespace {

template <class I>
void sort(Permuter& rows, const at::Tensor& experts, int64_t num_experts) {
  const I* e = experts.const_data_ptr<I>();
  const int64_t top_k = experts.size(1);
  std::atomic<bool> good{true};
  rows.for_chunks([&](int64_t c) {
    const int64_t first = rows.begin(c);
    if (!rows.count(c, e + first * top_k, rows.begin(c + 1) - first)) good = false;
  });
  if (!good) out_of_range("experts", experts, -1, num_experts - 1, "-1 for padding");
  rows.settle();
  rows.place_all(e);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> permute(const at::Tensor& experts,
                                                       int64_t num_experts) {
  constexpr int64_t LARGEST = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(experts.dim() == 2, "experts must be (tokens, top_k)");
  TORCH_CHECK_VALUE(experts.numel() <= LARGEST, "experts must have at most 2**31 - 1 entries");
  TORCH_CHECK_VALUE(1 <= num_experts && num_experts < LARGEST, "num_experts out of range");
  const at::Tensor ids = experts.contiguous();
  // About 10 microseconds of work for a thread.
  const int64_t grain = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, experts.size(1)));
  Permuter rows(experts.size(0), experts.size(1), num_experts, grain);
  if (ids.scalar_type() == at::kInt)
    sort<int32_t>(rows, ids, num_experts);
  else if (ids.scalar_type() == at::kLong)
    sort<int64_t>(rows, ids, num_experts);
  else
    TORCH_CHECK_TYPE(false, "experts must be int32 or int64, got ", ids.dtype());
  return {rows.source, rows.slot_of, rows.offsets};
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) { m.impl("permute", permute); }
