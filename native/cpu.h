// The instruction sets that kernels are written for, and the choice among them at run time.
#pragma once
#include <stdexcept>
#include <string>
#include <vector>

namespace plait {

// Sets that this CPU runs, best first. Each includes all that stand after it.
inline std::vector<std::string> usable_sets() {
  std::vector<std::string> sets;
#if defined(PLAIT_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni"))
    sets.emplace_back("AVX-512-bf16");
  if (avx512) sets.emplace_back("AVX-512");
  if (avx2) sets.emplace_back("AVX2");
#endif
  sets.emplace_back("baseline");
  return sets;
}

// Of kernels written for some of the sets, those of the best set not above `wanted`.
template <class Kernels>
const Kernels& pick(const std::vector<const Kernels*>& known, const std::string& wanted) {
  static const auto sets = usable_sets();
  bool reached = false;
  for (const auto& set : sets) {
    reached = reached || set == wanted;
    if (!reached) continue;
    for (const Kernels* each : known)
      if (set == each->name) return *each;
  }
  throw std::invalid_argument("this CPU does not run " + wanted);
}

}  // namespace plait
