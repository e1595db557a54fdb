// What routing cannot do without, as two loops to measure: moving the bytes, computing the keys.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <ATen/Parallel.h>
#include <c10/util/Float8_e4m3fn.h>
#include <torch/library.h>

namespace {

#define KERNEL "floors_loops.h"
#include "per_isa.h"

volatile float sink;  // keeps the loops from being optimised away

#if defined(__x86_64__)
#define ON(isa, call) \
  (isa) == "avx512" ? avx512::call : ((isa) == "avx2" ? avx2::call : portable::call)
#else
#define ON(isa, call) portable::call
#endif

template <class T>
void bytes_of(const at::Tensor& logits, at::Tensor& weights, at::Tensor& experts,
              const std::string& isa, int64_t grain) {
  const int64_t width = logits.size(1), top_k = weights.size(1);
  const T* x = logits.const_data_ptr<T>();
  float* w = weights.mutable_data_ptr<float>();
  int32_t* e = experts.mutable_data_ptr<int32_t>();
  at::parallel_for(0, logits.size(0), grain, [&](int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    sink = ON(isa, move_bytes(x + begin * width, rows * width, w + begin * top_k, e + begin * top_k,
                              rows * top_k));
  });
}

template <class T>
void keys_of(const at::Tensor& logits, bool softmax, const at::Tensor& bias, const std::string& isa,
             int64_t grain) {
  const int64_t width = logits.size(1);
  const T* x = logits.const_data_ptr<T>();
  const float* b = bias.const_data_ptr<float>();
  const int64_t block = std::min<int64_t>(logits.numel(), 4096);
  at::parallel_for(0, logits.size(0), grain, [&](int64_t begin, int64_t end) {
    sink = ON(isa, compute_keys(x, block, (end - begin) * width, softmax, b));
  });
}

void check(const at::Tensor& logits) {
  TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous(), "logits must be contiguous rows");
  TORCH_CHECK(logits.numel() >= 64, "too few logits to measure anything");
}

void bytes(const at::Tensor& logits, at::Tensor weights, at::Tensor experts, std::string isa,
           int64_t grain) {
  check(logits);
  if (logits.scalar_type() == at::kBFloat16)
    bytes_of<at::BFloat16>(logits, weights, experts, isa, grain);
  else
    bytes_of<float>(logits, weights, experts, isa, grain);
}

void keys(const at::Tensor& logits, bool softmax, const at::Tensor& bias, std::string isa,
          int64_t grain) {
  check(logits);
  TORCH_CHECK(bias.numel() >= 64, "bias must have at least 64 entries");
  if (logits.scalar_type() == at::kBFloat16)
    keys_of<at::BFloat16>(logits, softmax, bias, isa, grain);
  else
    keys_of<float>(logits, softmax, bias, isa, grain);
}

}  // namespace

TORCH_LIBRARY(triselect_floors, m) {
  m.def("bytes(Tensor logits, Tensor(a!) weights, Tensor(b!) experts, str isa, int grain) -> ()",
        bytes);
  m.def("keys(Tensor logits, bool softmax, Tensor bias, str isa, int grain) -> ()", keys);
}
