// The instruction set of all CPU kernels, and the operator that names it.
#include <cstdlib>
#include <string>

#include <torch/library.h>

#include "isa.h"

namespace {

const char* const NAMES[] = {"portable", "avx2", "avx512"};

Isa best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
    return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

Isa chosen() {
  const Isa has = best();
  const char* wish = std::getenv("TRISELECT_CPU_CAPABILITY");
  for (const Isa isa : {Isa::portable, Isa::avx2})
    if (wish && isa < has && std::string(wish) == NAMES[static_cast<int>(isa)]) return isa;
  return has;
}

}  // namespace

Isa isa() {
  static const Isa value = chosen();
  return value;
}

bool has_pairs() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512bf16") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return has && isa() == Isa::avx512;
#else
  return false;
#endif
}

TORCH_LIBRARY_FRAGMENT(triselect, m) {
  m.def("cpu_capability() -> str", [] { return std::string(NAMES[static_cast<int>(isa())]); });
}
