"""编码速度的对照：data 造数据，contestants 是各家，measure 与 extras 测量；入口是 ../bench_encode.py。"""
