// What experts say about a token, weighed and added up on the CPU: unpacking and threads.
//
// Floor: the rows that have a slot read once, the output written once.
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
#include <c10/util/BFloat16.h>
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include "cache.h"
#include "fits.h"
#include "floats.h"
#include "isa.h"
#include "outputs.h"

namespace {

constexpr int64_t COLUMNS = 6144;  // of a piece: their sums stay in the first cache
constexpr int64_t GRAIN = 262144;  // bytes worth a thread of their own

// What one assignment says: its row, and its expert's bias where there is one.
template <class T, class B>
struct Term {
  const T* row;
  const B* bias;
  float weight;
};

template <class T, class B>
struct Job {
  int64_t hidden, pieces;  // columns; pieces of them in a token
  const Term<T, B>* terms;
  const int64_t* terms_of;  // where those of each token begin, and the end
  bool biased;
  const T* residuals[2];  // or null
  int64_t residual_row[2];
  T* out;
  int64_t out_row;
};

// Up to COLUMNS columns of a token, and what is added up there.
template <class T, class B>
struct Piece {
  const Term<T, B>* terms;
  int64_t count, t, begin, n;
};

}  // namespace

#define KERNEL "../finalize/native_kernel.h"
#include "per_isa.h"

namespace {

using Optional = std::optional<at::Tensor>;

// Rows whose columns lie side by side.
at::Tensor readable(const at::Tensor& x) {
  return x.size(1) <= 1 || x.stride(1) == 1 ? x : x.contiguous();
}

struct Arguments {
  at::Tensor rows, weights, slots, bias, residuals[2];
  Integers experts;
};

void must_be_a_matrix(const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 2, name, " must have two dimensions, got shape ", x.sizes());
}

Arguments checked(const at::Tensor& rows, const at::Tensor& weights, const at::Tensor& slot_of,
                  const Optional& experts, const Optional& bias, const Optional& residual,
                  const Optional& residual2) {
  must_be_a_matrix("rows", rows);
  must_be_a_matrix("slot_of", slot_of);
  TORCH_CHECK_TYPE(slot_of.scalar_type() == at::kInt, "slot_of must be int32, got ",
                   slot_of.dtype());
  must_fit("weights", weights, slot_of.sizes(), at::kFloat);
  Arguments args{readable(rows), weights.contiguous(), slot_of.contiguous(), {}, {}, {}};
  TORCH_CHECK_VALUE(experts.has_value() == bias.has_value(), "experts and bias go together");
  if (bias) {
    must_be_a_matrix("bias", *bias);
    TORCH_CHECK_VALUE(bias->size(1) == rows.size(1), "bias must have ", rows.size(1),
                      " columns, got shape ", bias->sizes());
    TORCH_CHECK_TYPE(bias->scalar_type() == rows.scalar_type() || bias->scalar_type() == at::kFloat,
                     "bias must be ", rows.scalar_type(), " or float32, got ", bias->dtype());
    TORCH_CHECK_VALUE(experts->sizes() == slot_of.sizes(), "experts must be ", slot_of.sizes(),
                      ", got shape ", experts->sizes());
    args.bias = readable(*bias);
    args.experts = Integers("experts", *experts);
    args.experts.must_be_between("experts", -1, bias->size(0) - 1, "-1 for padding");
  }
  const Optional* given[2] = {&residual, &residual2};
  for (int r = 0; r < 2; ++r)
    if (*given[r]) {
      const at::Tensor& x = **given[r];
      must_fit("residuals", x, {slot_of.size(0), rows.size(1)}, rows.scalar_type());
      args.residuals[r] = readable(x);
    }
  return args;
}

// The terms of all tokens, those that are skipped left out.
template <class T, class B>
std::vector<Term<T, B>> terms_of(const Arguments& args, int64_t* begins) {
  const bool biased = args.bias.defined();
  const B* bias = biased ? args.bias.const_data_ptr<B>() : nullptr;
  const int64_t tokens = args.slots.size(0), top_k = args.slots.size(1), count = args.rows.size(0);
  const T* rows = args.rows.const_data_ptr<T>();
  const float* weights = args.weights.const_data_ptr<float>();
  const int32_t* slots = args.slots.const_data_ptr<int32_t>();
  std::vector<Term<T, B>> terms;
  terms.reserve(tokens * top_k);
  std::vector<bool> taken(count);
  for (int64_t t = 0; t < tokens; ++t) {
    begins[t] = terms.size();
    for (int64_t i = t * top_k; i < (t + 1) * top_k; ++i) {
      const int64_t slot = slots[i];
      if (outside(slot, -1, count - 1))
        out_of_range("slot_of", args.slots, -1, count - 1, "-1 for none");
      if (slot < 0) continue;
      TORCH_CHECK_VALUE(!taken[slot], "slot_of must name a row once at most, got ", slot, " twice");
      taken[slot] = true;
      const int64_t expert = biased ? args.experts[i] : 0;
      if (expert < 0) continue;
      terms.push_back({rows + slot * args.rows.stride(0),
                       biased ? bias + expert * args.bias.stride(0) : nullptr, weights[i]});
    }
  }
  begins[tokens] = terms.size();
  return terms;
}

template <class T, class B>
void combine(const Arguments& args, const at::Tensor& out) {
  const int64_t tokens = args.slots.size(0);
  std::vector<int64_t> begins(tokens + 1);
  const std::vector<Term<T, B>> terms = terms_of<T, B>(args, begins.data());
  Job<T, B> job{};
  job.hidden = out.size(1), job.pieces = (job.hidden + COLUMNS - 1) / COLUMNS;
  job.terms = terms.data(), job.terms_of = begins.data(), job.biased = args.bias.defined();
  for (int r = 0; r < 2; ++r)
    if (args.residuals[r].defined()) {
      job.residuals[r] = args.residuals[r].const_data_ptr<T>();
      job.residual_row[r] = args.residuals[r].stride(0);
    }
  job.out = out.mutable_data_ptr<T>(), job.out_row = out.stride(0);
  const int64_t bytes = std::min(COLUMNS, job.hidden) * sizeof(T) * (args.slots.size(1) + 1);
  at::parallel_for(0, tokens * job.pieces,
                   std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, bytes)),
                   [&](int64_t first, int64_t last) { ON_BEST_ISA(finalize(job, first, last)); });
}

void write(const Arguments& args, const at::Tensor& out) {
  with_floats("rows", args.rows, [&](auto* rows) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(rows)>>;
    if (args.bias.defined() && args.bias.scalar_type() == at::kFloat)
      combine<T, float>(args, out);
    else
      combine<T, T>(args, out);
  });
}

at::Tensor finalize(const at::Tensor& rows, const at::Tensor& weights, const at::Tensor& slot_of,
                    const Optional& experts, const Optional& bias, const Optional& residual,
                    const Optional& residual2) {
  const Arguments args = checked(rows, weights, slot_of, experts, bias, residual, residual2);
  const at::Tensor out = empty({slot_of.size(0), rows.size(1)}, rows.scalar_type());
  write(args, out);
  return out;
}

void finalize_out(const at::Tensor& rows, const at::Tensor& weights, const at::Tensor& slot_of,
                  const Optional& experts, const Optional& bias, const Optional& residual,
                  const Optional& residual2, const at::Tensor& out) {
  const Arguments args = checked(rows, weights, slot_of, experts, bias, residual, residual2);
  must_fit("out", out, {slot_of.size(0), rows.size(1)}, rows.scalar_type());
  TORCH_CHECK_VALUE(!out.numel() || out.size(1) <= 1 || out.stride(1) == 1,
                    "out's columns must lie side by side");
  write(args, out);
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) {
  m.impl("finalize", finalize);
  m.impl("finalize_out", finalize_out);
}
