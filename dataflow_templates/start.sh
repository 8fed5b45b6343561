#!/bin/sh
# Start a program, such as Beam's boot, so that it finds the machine code in the image; without a program, print the kinds
# of processors that the image has it for. Numba keeps machine code by a processor's exact name and features, in which
# even machines of one type differ. So it is kept for what many have in common, and a worker says which kind it is.
set -eu

# x86-64-v3: AVX2, as in E2 and N2D machines. x86-64-v4: AVX-512, as in N2, C2 and C3D. The last: matrix units, as in C3, N4 and C4.
kinds='x86-64-v3 x86-64-v4 x86-64-v4+amx-tile+amx-bf16'

if [ $# -eq 0 ]; then
  echo "$kinds"
  exit
fi

flags=$(sed -n '/^flags/{s/.*: //p;q}' /proc/cpuinfo)
has() {
  for flag; do
    case " $flags " in *" $flag "*) ;; *) return 1 ;; esac
  done
}

# Any other processor compiles for itself.
if has avx2 bmi1 bmi2 cx16 f16c fma abm movbe xsave; then
  NUMBA_CPU_NAME=x86-64-v3
  NUMBA_CPU_FEATURES=
  if has avx512f avx512bw avx512cd avx512dq avx512vl; then
    NUMBA_CPU_NAME=x86-64-v4
    if has amx_tile amx_bf16; then
      NUMBA_CPU_FEATURES=+amx-tile,+amx-bf16
    fi
  fi
  export NUMBA_CPU_NAME NUMBA_CPU_FEATURES
fi
exec "$@"
