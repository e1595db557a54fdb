// Routing by table or by hash on the CPU: the experts; native_kernel.h weighs them.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <ATen/Parallel.h>
#include <c10/util/Float8_e4m3fn.h>
#include <torch/library.h>

#include "isa.h"
#include "logits.h"
#include "outputs.h"
#include "ranges.h"

namespace {

// What the kernel needs to know.
struct Weighing {
  int64_t experts, top_k;
  Scoring scoring;
  bool renormalize;
  float factor;
};

#define KERNEL "../table_route/native_kernel.h"
#include "per_isa.h"

// MurmurHash3's finaliser.
uint32_t fmix32(uint32_t h) {
  h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
  h = (h ^ (h >> 13)) * 0xC2B2AE35u;
  return h ^ (h >> 16);
}

// Experts by hash: they are size / top_k apart.
struct Hash {
  int64_t size, top_k;
  uint32_t seed;

  bool operator()(int64_t id, int32_t base, int32_t* experts) const {
    const int64_t first = fmix32(static_cast<uint32_t>(id) ^ seed) % size, step = size / top_k;
    for (int64_t k = 0; k < top_k; ++k) experts[k] = base + (first + k * step) % size;
    return true;
  }
};

// Experts by table; false if one is none of the group's.
template <class I>
struct Table {
  const I* entries;
  int64_t row_stride, column_stride, size, top_k;

  bool operator()(int64_t id, int32_t base, int32_t* experts) const {
    bool good = true;
    for (int64_t k = 0; k < top_k; ++k) {
      const I local = entries[id * row_stride + k * column_stride];
      good &= !outside(local, 0, size - 1);
      experts[k] = base + static_cast<int32_t>(local);
    }
    return good;
  }
};

// Ids and domains are in range. False if an entry of the table is not.
template <class Lookup>
bool look_up(const Lookup& lookup, const at::Tensor& ids, const at::Tensor& domains, int64_t size,
             int64_t top_k, int32_t* experts) {
  const int64_t* id = ids.const_data_ptr<int64_t>();
  const int64_t* domain = domains.defined() ? domains.const_data_ptr<int64_t>() : nullptr;
  std::atomic<bool> good{true};
  at::parallel_for(0, ids.numel(), 4096, [&](int64_t begin, int64_t end) {
    bool all = true;
    for (int64_t t = begin; t < end; ++t) {
      const int32_t base = domain ? static_cast<int32_t>(domain[t] * size) : 0;
      if (id[t] < 0)
        std::fill(experts + t * top_k, experts + (t + 1) * top_k, -1);
      else
        all &= lookup(id[t], base, experts + t * top_k);
    }
    if (!all) good = false;
  });
  return good;
}

template <class I>
bool look_up(const at::Tensor& table, const at::Tensor& ids, const at::Tensor& domains,
             int64_t size, int64_t top_k, int32_t* experts) {
  const Table<I> lookup{table.const_data_ptr<I>(), table.stride(0),
                        table.dim() == 2 ? table.stride(1) : 0, size, top_k};
  return look_up(lookup, ids, domains, size, top_k, experts);
}

void weigh_all(const at::Tensor& logits, const Weighing& o, const int32_t* experts,
               float* weights) {
  const at::Tensor rows = readable_rows(logits);
  const int64_t stride = rows.stride(0);
  with_logits(rows, [&](const auto* x) {
    at::parallel_for(0, rows.size(0), 1024, [&](int64_t begin, int64_t end) {
      const int64_t at = begin * o.top_k;
      ON_BEST_ISA(weigh(x + begin * stride, stride, end - begin, o, experts + at, weights + at));
    });
  });
}

std::tuple<at::Tensor, at::Tensor> table_route(
    const at::Tensor& token_ids, const std::optional<at::Tensor>& table, int64_t num_experts,
    const std::optional<at::Tensor>& domains, int64_t groups,
    const std::optional<at::Tensor>& logits, c10::string_view scoring_func, bool renormalize,
    double factor, int64_t top_k, int64_t seed) {
  // The public function says all of this in words; here it keeps a direct call inside its memory.
  TORCH_CHECK_VALUE(token_ids.dim() == 1, "token_ids must be (tokens,)");
  TORCH_CHECK_VALUE(groups >= 1 && num_experts >= 1 && num_experts % groups == 0 &&
                        num_experts <= std::numeric_limits<int32_t>::max(),
                    "num_expert_group must divide num_experts");
  const int64_t tokens = token_ids.size(0), size = num_experts / groups;
  TORCH_CHECK_VALUE(1 <= top_k && top_k <= size, "top_k out of range");
  TORCH_CHECK_VALUE(!domains || domains->sizes() == token_ids.sizes(), "domains must be (tokens,)");
  TORCH_CHECK_VALUE(
      !table || (table->dim() == 2 && table->size(1) == top_k) || (table->dim() == 1 && top_k == 1),
      "table must be (vocabulary, top_k)");
  TORCH_CHECK_VALUE(!logits || (logits->dim() == 2 && logits->size(0) == tokens &&
                                logits->size(1) == num_experts),
                    "logits must be (tokens, experts)");
  const at::Tensor ids = token_ids.to(at::kLong).contiguous();
  const at::Tensor of = domains ? domains->to(at::kLong).contiguous() : at::Tensor();
  if (domains) must_be_in_range<int64_t>("domains", of, 0, groups - 1, "the groups");
  must_be_in_range<int64_t>("token_ids", ids, -1,
                            table ? table->size(0) - 1 : std::numeric_limits<int32_t>::max(),
                            table ? "the table's rows, -1 for padding" : "-1 for padding");

  at::Tensor weights = empty({tokens, top_k}, at::kFloat);
  at::Tensor experts = empty({tokens, top_k}, at::kInt);
  int32_t* e = experts.mutable_data_ptr<int32_t>();
  float* w = weights.mutable_data_ptr<float>();
  bool good = true;
  if (!table)
    look_up(Hash{size, top_k, fmix32(static_cast<uint32_t>(seed))}, ids, of, size, top_k, e);
  else if (table->scalar_type() == at::kInt)
    good = look_up<int32_t>(*table, ids, of, size, top_k, e);
  else
    good = look_up<int64_t>(*table, ids, of, size, top_k, e);
  if (!good)
    out_of_range("table", table->index_select(0, ids.masked_select(ids.ge(0))), 0, size - 1,
                 "the experts of a group");

  const Weighing options{num_experts, top_k, scoring_of(scoring_func), renormalize,
                         static_cast<float>(factor)};
  if (logits) {
    weigh_all(*logits, options, e, w);
    return {weights, experts};
  }
  const float one = options.factor / (renormalize ? top_k + EPSILON : 1.0f);
  for (int64_t i = 0; i < tokens * top_k; ++i) w[i] = e[i] < 0 ? 0.0f : one;
  return {weights, experts};
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) { m.impl("table_route", table_route); }
