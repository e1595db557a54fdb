// Compression of queries or keys on the CPU: unpacking, threads and registration.
//
// Floor of one token: its map read once, 2 E G D bytes of bfloat16. Of many: 2 E G D operations
// each.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <ATen/Parallel.h>
#include <ATen/ops/mm.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include "cache.h"
#include "floats.h"
#include "isa.h"
#include "logits.h"  // scores.h names its Scoring
#include "outputs.h"

namespace {

constexpr int64_t FEW = 8;       // tokens up to which a matrix product costs more than it saves
constexpr int64_t BLOCK = 1024;  // tokens of a matrix product

// All of a call but what has a type of its own.
struct Job {
  int64_t heads, groups, shared, dim;  // shared heads to each group
  int64_t each, width;                 // of a group, padded to whole vectors; of all groups
  int64_t out;                         // compressed numbers
  int64_t x_head;                      // from one head to the next
  const float* bias;                   // or null
  std::vector<int64_t> x_at, slots;    // of tokens: where the first head begins; the row written to
};

}  // namespace

#define KERNEL "../compress/native_kernel.h"
#include "per_isa.h"

namespace {

using Optional = std::optional<at::Tensor>;

// Where each token of x (..., H, D) begins, in order.
std::vector<int64_t> beginnings(const at::Tensor& x) {
  std::vector<int64_t> at{0};
  for (int64_t d = 0; d + 2 < x.dim(); ++d) {
    std::vector<int64_t> more;
    more.reserve(at.size() * x.size(d));
    for (const int64_t begin : at)
      for (int64_t i = 0; i < x.size(d); ++i) more.push_back(begin + i * x.stride(d));
    at.swap(more);
  }
  return at;
}

template <class F>
void with_values(const at::Tensor& values, const F& f) {
  switch (values.scalar_type()) {
    case at::kFloat:
      return f(values.mutable_data_ptr<float>());
    case at::kHalf:
      return f(values.mutable_data_ptr<at::Half>());
    case at::kBFloat16:
      return f(values.mutable_data_ptr<at::BFloat16>());
    case at::kChar:
      return f(values.mutable_data_ptr<int8_t>());
    case at::kFloat8_e4m3fn:
      return f(values.mutable_data_ptr<c10::Float8_e4m3fn>());
    default:
      TORCH_CHECK_TYPE(false, "out.values has dtype ", values.dtype());
  }
}

template <class X, class Y>
void by_products(const Job& job, const X* x, const at::Tensor& weight, Y* values, float* scales) {
  const int64_t count = job.x_at.size();
  const at::Tensor map = weight.to(at::kFloat).t();
  at::Tensor folded = empty({std::min(count, BLOCK), job.width}, at::kFloat);
  for (int64_t first = 0; first < count; first += BLOCK) {
    const int64_t n = std::min(BLOCK, count - first);
    float* rows = folded.mutable_data_ptr<float>();
    at::parallel_for(0, n, 64, [&](int64_t begin, int64_t end) {
      ON_BEST_ISA(fold_all(job, x, first + begin, first + end, rows + begin * job.width));
    });
    const at::Tensor products = at::mm(folded.narrow(0, 0, n), map);
    const float* y = products.const_data_ptr<float>();
    at::parallel_for(0, n, 64, [&](int64_t begin, int64_t end) {
      ON_BEST_ISA(finish_all(job, y + begin * job.out, values, scales, first + begin, first + end));
    });
  }
}

void compress(const at::Tensor& tokens, const at::Tensor& weight, const Optional& bias,
              const Optional& slots, const at::Tensor& values, const Optional& scale) {
  const at::Tensor x = tokens.stride(-1) == 1 ? tokens : tokens.contiguous();
  const at::Tensor w = weight.contiguous();
  Job job{};
  job.heads = x.size(-2), job.dim = x.size(-1), job.out = w.size(0);
  job.groups = w.size(1) / job.dim, job.shared = job.heads / job.groups;
  job.x_head = x.stride(-2), job.x_at = beginnings(x);
  const int64_t count = job.x_at.size(), rows = values.numel() / job.out;
  job.each = count <= FEW ? (job.dim + 15) / 16 * 16 : job.dim;
  job.width = job.groups * job.each;
  TORCH_CHECK_VALUE(values.is_contiguous() && (!scale || scale->is_contiguous()),
                    "out must be contiguous");
  TORCH_CHECK_VALUE(slots || rows == count, "slots must say which rows the tokens go to");
  TORCH_CHECK_VALUE((values.element_size() == 1) == scale.has_value(),
                    "out.scale goes with 8 bits");
  job.slots.resize(count);
  if (slots) {
    const Integers given("slots", *slots);
    given.must_be_between("slots", -1, rows - 1, "-1 writes nothing");
    for (int64_t t = 0; t < count; ++t) job.slots[t] = given[t];
  } else {
    for (int64_t t = 0; t < count; ++t) job.slots[t] = t;
  }
  const at::Tensor b = bias ? bias->to(at::kFloat).contiguous() : at::Tensor();
  job.bias = bias ? b.const_data_ptr<float>() : nullptr;
  float* scales = scale ? scale->mutable_data_ptr<float>() : nullptr;
  with_floats("x", x, [&](auto* from) {
    with_floats("weight", w, [&](auto* map) {
      with_values(values, [&](auto* to) {
        if (count <= FEW)
          at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
            ON_BEST_ISA(compress(job, from, map, to, scales, begin, end));
          });
        else
          by_products(job, from, w, to, scales);
      });
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) { m.impl("compress", compress); }
