// Outputs on the CPU. at::empty would ask the dispatcher for every one of them, which takes longer
// than making it.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_native.h>

inline at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::native::empty_cpu(sizes, dtype);
}
