// 16-bit conversions by the CUDA headers' own host code.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

float half_to_float(unsigned short bits) { return __half2float(__ushort_as_half(bits)); }
unsigned short float_to_half(float value) { return __half_as_ushort(__float2half_rn(value)); }
float bfloat16_to_float(unsigned short bits) { return __bfloat162float(__ushort_as_bfloat16(bits)); }
unsigned short float_to_bfloat16(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
