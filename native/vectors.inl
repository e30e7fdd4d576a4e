// Vectors of 16 floats in each instruction set; included within an anonymous namespace, once per set.
typedef float V16 __attribute__((vector_size(64)));
typedef float V8 __attribute__((vector_size(32)));
typedef float V4 __attribute__((vector_size(16)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef uint32_t U8 __attribute__((vector_size(32)));
typedef uint16_t H16 __attribute__((vector_size(32)));
typedef int8_t B16 __attribute__((vector_size(16)));
typedef uint16_t H8 __attribute__((vector_size(16)));

constexpr V16 kIota = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

template <class To, class From>
inline To cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class V>
inline V read(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
inline void write(void* p, const V& v) {
  std::memcpy(p, &v, sizeof v);
}

inline V16 splat(float x) { return V16{} + x; }

inline V16 read16(const float* p) { return read<V16>(p); }
inline V16 read16(const uint16_t* p) {
#if defined(__AVX512F__)
  return cast<V16>(__builtin_convertvector(read<H16>(p), U16) << 16);
#else
  const U8 halves[2] = {__builtin_convertvector(read<H8>(p), U8) << 16,
                        __builtin_convertvector(read<H8>(p + 8), U8) << 16};
  return read<V16>(halves);
#endif
}

inline V16 read16(const int8_t* p) {
#if defined(__AVX512F__)
  return (V16)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  return __builtin_convertvector(read<B16>(p), V16);
#endif
}

// Signed byte i of each word, as a number.
inline V16 from_byte(U16 words, int i) { return __builtin_convertvector(I16(words << (24 - 8 * i)) >> 24, V16); }

inline float widen(float x) { return x; }
inline float widen(uint16_t x) { return cast<float>(uint32_t(x) << 16); }

inline void put(float* p, float value) { *p = value; }
inline void put(uint16_t* p, float value) {  // round to nearest, ties to even
  const uint32_t u = cast<uint32_t>(value);
  *p = (u & 0x7fffffffu) > 0x7f800000u ? uint16_t((u >> 16) | 64) : uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

inline void write16(float* p, V16 v) { write(p, v); }
inline void write16(uint16_t* p, V16 v) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
  for (int i = 0; i < 16; i++) put(p + i, v[i]);
#endif
}

// As memory of the type would give it back.
template <class T>
inline V16 rounded(V16 v) {
  if constexpr (sizeof(T) == 4) return v;
  T part[16];
  write16(part, v);
  return read16(part);
}

inline V16 greater(V16 a, V16 b) { return a > b ? a : b; }

inline V8 low(V16 v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7); }
inline V8 high(V16 v) { return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15); }

inline float total(V16 v) {
  const V8 a = low(v) + high(v);
  const V4 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  return (b[0] + b[2]) + (b[1] + b[3]);
}

inline float greatest(V16 v) {
  const V8 a0 = low(v), a1 = high(v), a = a0 > a1 ? a0 : a1;
  const V4 b0 = __builtin_shufflevector(a, a, 0, 1, 2, 3), b1 = __builtin_shufflevector(a, a, 4, 5, 6, 7);
  const V4 b = b0 > b1 ? b0 : b1;
  const float c = b[0] > b[2] ? b[0] : b[2], d = b[1] > b[3] ? b[1] : b[3];
  return c > d ? c : d;
}

// Relative error about 1e-7; 0 below -87, as the least normal number is near, and no more than e^88.
inline V16 exp16(V16 x) {
  const V16 least = splat(-87.f), most = splat(88.f);
  V16 y = x < least ? least : x;
  y = y > most ? most : y;
  const V16 n = (y * 1.44269504f + 12582912.f) - 12582912.f;
  V16 f = y - n * 0.693359375f;
  f = f + n * 2.12194440e-4f;
  V16 p = f * (1.f / 5040) + 1.f / 720;
  p = p * f + 1.f / 120;
  p = p * f + 1.f / 24;
  p = p * f + 1.f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.f;
  p = p * f + 1.f;
  p = p * cast<V16>((__builtin_convertvector(n, I16) + 127) << 23);
  return x < least ? V16{} : p;
}

inline V16 tanh16(V16 x) {  // a rational form far from zero, where it does not cancel, and a series near it
  const V16 size = x < 0 ? -x : x, square = x * x;
  V16 near = square * -5.70498872745e-3f + 2.06390887954e-2f;
  near = near * square + -5.37397155531e-2f;
  near = near * square + 1.33314422036e-1f;
  near = near * square + -3.33332819422e-1f;
  near = near * square * x + x;
  const V16 far = 1.f - 2.f / (exp16(size * 2.f) + 1.f);
  return size < 0.625f ? near : (x < 0 ? -far : far);
}
